"""The schema's revisions, and the parts they are made of."""
