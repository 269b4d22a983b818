"""What `autointerp bench` measures: ratios of what we do to the bare work, in one process, on made-up input
of a given size. Times are CPU time on a CPU (two processes on one core don't disturb it much) and wall time
on a GPU."""
