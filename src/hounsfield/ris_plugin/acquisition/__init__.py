"""What was acquired: performed steps, and studies that are matched to their orders or put up."""
