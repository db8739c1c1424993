"""The scheme "mixed": bits per tensor by measured sensitivity, and rounding with feedback."""
