"""Reading model files: safetensors, GGUF, hubs."""
