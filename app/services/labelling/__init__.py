"""Label Studio's side of the service: its label configs, regions, photos and annotations."""
