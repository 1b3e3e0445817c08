"""Methods side by side on the same prompts: measured, checked, reported."""
