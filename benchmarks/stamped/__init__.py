"""The embedded service whose runners note when their first backward pass begins."""
