"""Weight transfer from the learner to the rollout engines: object store, NCCL or CUDA IPC."""
