"""Files: whole or absent, journals, safetensors."""
