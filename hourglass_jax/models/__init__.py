"""Systems: a backbone, a head and how their images are prepared; one file each."""
