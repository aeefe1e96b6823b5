"""How events reach customers' trackers: templates, bodies, signatures, the address guard, the sender, what answers mean."""
