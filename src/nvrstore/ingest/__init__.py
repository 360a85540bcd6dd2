"""From cameras to samples: sources behind one contract, a supervisor that keeps them coming, gaps with causes."""
