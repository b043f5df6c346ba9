"""Fine-tune a language model with QLoRA and learn whether it was worth it."""
