"""See every request: what is captured, how it is shown, and that no secret is shown with it."""
