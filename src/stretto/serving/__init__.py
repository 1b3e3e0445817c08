"""The server: OpenAI's protocol over ``AsyncEngine``."""
