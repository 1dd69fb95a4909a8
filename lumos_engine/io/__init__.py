"""Reading and writing files: checkpoints, JSON, videos and images. Every writer goes through :mod:`lumos_engine.io.atomic`."""
