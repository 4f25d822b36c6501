"""Encode real photos into DDIM latents, decode them back, and morph between them."""
