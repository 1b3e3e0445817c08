"""How a request moves: plain decoding, speculation, diffusion."""
