package config

func validate(r *reporter, c *KubeProxy) {}

func warn(r *reporter, d *document) {}
