"""What forecasts are judged by; each figure is a function of how often every patient is counted."""

from twin.tasks.metrics.binary import binary_metrics
from twin.tasks.metrics.clarke import clarke_zone
from twin.tasks.metrics.glucose import glucose_metrics
from twin.tasks.metrics.onset import onset_metrics

__all__ = ["binary_metrics", "clarke_zone", "glucose_metrics", "onset_metrics"]
