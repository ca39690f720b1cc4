"""A Chromium without a window, driven over a pipe: nothing listens."""
import base64
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
import numpy as np
import torch
from PIL import Image

NAMES = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome'
FLAGS = ('--headless=new --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --remote-debugging-pipe '
    '--hide-scrollbars --no-first-run --disable-extensions --disable-background-networking '
    '--disable-component-update --disable-dev-shm-usage --force-device-scale-factor=1').split()


def chromium(): return next((p for n in NAMES if (p := shutil.which(n))), None)


class Browser:
    "One page: `goto`, `js`, `picture`, `close`; `asked` holds every address that was asked for"
    def __init__(self, w=320, h=240):
        self.home, self.i, self.buf, self.session = tempfile.TemporaryDirectory(), 0, b'', None
        self.asked, self.said = [], []
        (r1, w1), (r2, w2) = os.pipe(), os.pipe()

        def ends(): # the browser reads from 3 and writes to 4
            a, b = os.dup(r1), os.dup(w2)
            os.dup2(a, 3)
            os.dup2(b, 4)
        args = [chromium(), *FLAGS, f'--window-size={w},{h}', f'--user-data-dir={self.home.name}', 'about:blank']
        null = subprocess.DEVNULL
        self.proc = subprocess.Popen(args, preexec_fn=ends, close_fds=False, stdout=null, stderr=null)
        os.close(r1)
        os.close(w2)
        self.w, self.r = w1, r2
        page = next(t for t in self.call('Target.getTargets')['targetInfos'] if t['type']=='page')
        self.session = self.call('Target.attachToTarget', targetId=page['targetId'], flatten=True)['sessionId']
        for d in ('Runtime', 'Page', 'Network'): self.call(f'{d}.enable')
        self.call('Emulation.setDeviceMetricsOverride', width=w, height=h, deviceScaleFactor=1, mobile=False)

    def _read(self):
        while b'\0' not in self.buf:
            got = os.read(self.r, 1 << 16)
            if not got: raise EOFError('the browser has gone')
            self.buf += got
        msg, self.buf = self.buf.split(b'\0', 1)
        return json.loads(msg)

    def call(self, method, **params):
        self.i += 1
        msg = dict(id=self.i, method=method, params=params)
        if self.session: msg['sessionId'] = self.session
        data = json.dumps(msg).encode() + b'\0'
        while data: data = data[os.write(self.w, data):]
        while True:
            r = self._read()
            if r.get('method')=='Network.requestWillBeSent': self.asked.append(r['params']['request']['url'][:100])
            if r.get('method') in ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled'):
                self.said.append(str(r['params'])[:500])
            if r.get('id')==self.i:
                if 'error' in r: raise RuntimeError(r['error'])
                return r['result']

    def js(self, code):
        r = self.call('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in r: raise RuntimeError(r['exceptionDetails'].get('exception', {}).get('description', r))
        return r['result'].get('value')

    def until(self, code, seconds=60):
        end = time.time()+seconds
        while not (v := self.js(code)):
            if time.time()>end: raise TimeoutError(f'{code}\n{self.said}')
            time.sleep(.1)
        return v

    def goto(self, url):
        self.call('Page.navigate', url='about:blank')
        self.call('Page.navigate', url=url)

    def picture(self):
        "What is on the screen, float [h, w, 3]"
        png = base64.b64decode(self.call('Page.captureScreenshot', format='png')['data'])
        return torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert('RGB'))).float()/255

    def close(self):
        try: self.call('Browser.close')
        except (EOFError, OSError, RuntimeError): pass
        code = self.proc.wait(30)
        os.close(self.w)
        os.close(self.r)
        for _ in range(20): # its children may still write there
            try: return self.home.cleanup()
            except OSError: time.sleep(.1)
        return code
