"Models for tests of chunk workers, found by name ('chunk_toys:drifting'); environment variables say what they do."
import errno
import os
import time


class Drifting:
    "Brightness on a scale that depends on what is seen alone; counts its calls in a file, which outlives the process"
    id, file_kind, units, metric = 'drifting', 'disparity', 'relative', False
    def __init__(self, *_): self.log, self.slow = os.environ.get('TOY_LOG'), float(os.environ.get('TOY_SLOW', 0))
    def prep(self, f): return f

    def infer(self, x):
        if self.log:
            with open(self.log, 'ab', buffering=0) as f: f.write(b'x')
        time.sleep(self.slow)
        x = x.float().mean(-1)/255
        s = float(x[0, 20:].double().mean())*1000%1
        return x*(.5+s)+s/3


class Null(Drifting):
    "Costs next to nothing: one channel"
    id = 'null'
    def infer(self, x): return x[..., 1].float()


class Full(Drifting):
    "The disk is full at its second window"
    calls = 0

    def infer(self, x):
        self.calls += 1
        if self.calls==2: raise OSError(errno.ENOSPC, 'No space left on device')
        return super().infer(x)


drifting, null, full = Drifting, Null, Full
