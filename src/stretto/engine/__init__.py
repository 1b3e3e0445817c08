"""Scheduler, step loop, ``LLM``."""
