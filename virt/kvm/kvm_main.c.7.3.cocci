// Ends here: 6e2b2358b3ef ("KVM: Grab vcpu->mutex across installing the vCPU's fd and
// bumping online_vcpus") is in.
