"""From documents to what fired where: token rows, the forward pass with the encoder behind it, and
shards sorted by feature, so that one feature's firings are one slice."""
