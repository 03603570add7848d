"""Models of other houses, in and out: Hugging Face's GPT-2 and Llama layouts, and safetensors in our own names."""
