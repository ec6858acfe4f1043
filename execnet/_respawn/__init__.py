"""``Group(respawn=N)``: a worker that died is started anew."""
