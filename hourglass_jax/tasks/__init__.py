"""What a result is: from a model's outputs to what people see, on the host."""
