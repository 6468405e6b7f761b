"""The run's own record and the trackers: TensorBoard, W&B, MLflow, Trackio."""
