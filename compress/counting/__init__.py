"""What `mcompress.compress.cost` is made of: recording a forward pass, fusing its operators, planning its memory."""
