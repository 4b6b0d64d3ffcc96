"""Trackers that follow a run: TensorBoard, Weights & Biases, MLflow. Each is imported only where it is named."""

from rayjobs.tracking.following import Trackers, open_trackers

__all__ = ["Trackers", "open_trackers"]
