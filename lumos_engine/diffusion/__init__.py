"""Discrete diffusion, frame by frame: schedule, noise, the frame loop, and what goes into and comes out of it."""
