"""From pictures to results and back: reading, preprocessing, prediction, drawing."""
