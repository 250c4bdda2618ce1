"""Hand over from the programs that share a row to the last of them to arrive."""

import triton
import triton.language as tl


@triton.jit
def is_last_program(arrivals_ptr, num_programs) -> tl.tensor:
    """Whether all others of the row's programs are done; it then sees what they wrote.

    Counts in `arrivals_ptr`, which is 0 before the first and again after the last.
    """
    tl.debug_barrier()  # all threads have written: the release below covers them
    last = tl.atomic_add(arrivals_ptr, 1, sem="acq_rel", scope="gpu") == num_programs - 1
    if last:
        tl.store(arrivals_ptr, 0)
    return last
