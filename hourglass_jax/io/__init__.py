"""Files: atomic writing, journals, safetensors; text for terminals."""
