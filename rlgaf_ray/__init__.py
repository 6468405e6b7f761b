"""rlgaf_ray: post-train language models by generative adversarial feedback, on Ray and vLLM."""

__version__ = "0.1.0"
