"A headless Chromium, driven over the DevTools protocol: what the browser tests need of it, and no more"
import base64, itertools, json, os, re, shutil, subprocess, tempfile, time
from pathlib import Path
from urllib.request import Request, urlopen

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
def find(): return os.environ.get('CHROMIUM') or next(filter(None, map(shutil.which, NAMES)), None)

FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0 --remote-allow-origins=*'

class Browser:
    "One tab; `errors` holds what the page complained about since the last `open`"
    def __init__(self):
        import websocket
        self.home = tempfile.mkdtemp(); self.p = subprocess.Popen([find(), *FLAGS.split(), f'--user-data-dir={self.home}', 'about:blank'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(self.home)/'DevToolsActivePort'; end = time.time()+60
        while not (port.exists() and port.read_text().strip()):
            if time.time()>end or self.p.poll() is not None: raise RuntimeError('Chromium did not start')
            time.sleep(.1)
        port = port.read_text().split()[0]
        tab = json.load(urlopen(Request(f'http://127.0.0.1:{port}/json/new?about:blank', method='PUT'), timeout=30))
        self.ws = websocket.create_connection(tab['webSocketDebuggerUrl'], timeout=60); self.ids,self.errors,self.fetched,self.loaded = itertools.count(1),[],[],False
        for domain in ('Page', 'Runtime', 'Log', 'Network'): self.call(f'{domain}.enable')
    def _event(self, m):
        kind,p = m['method'],m['params']
        if kind=='Page.loadEventFired': self.loaded = True
        elif kind=='Runtime.exceptionThrown': self.errors.append(p['exceptionDetails'].get('exception', {}).get('description') or p['exceptionDetails']['text'])
        elif kind=='Log.entryAdded' and p['entry']['level']=='error': self.errors.append(p['entry']['text'])
        elif kind=='Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'): self.errors.append(str(p['args']))
        elif kind=='Network.loadingFailed' and not p.get('canceled'): self.errors.append(f"request failed: {p['errorText']}")
        elif kind=='Network.requestWillBeSent': self.fetched.append(p['request']['url'])
    def call(self, method, **params):
        "One command and its answer; events on the way are kept"
        n = next(self.ids); self.ws.send(json.dumps(dict(id=n, method=method, params=params)))
        while (m := json.loads(self.ws.recv())).get('id')!=n: self._event(m)
        if 'error' in m: raise RuntimeError(f"{method}: {m['error']}")
        return m['result']
    def run(self, js):
        "The value of an expression on the page; promises are waited for"
        r = self.call('Runtime.evaluate', expression=js, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in r: raise RuntimeError(r['exceptionDetails'].get('exception', {}).get('description', js))
        return r['result'].get('value')
    def wait(self, js, seconds=10):
        "Until an expression is true"
        end = time.time()+seconds
        while not (v := self.run(f'(() => {{ const v = ({js}); return v instanceof Node ? true : v; }})()')):
            assert time.time()<end, f'waited in vain for {js}'
            time.sleep(.05)
        return v
    def size(self, width, height=900): self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width<600)
    def open(self, path, width=1280):
        self.size(width); self.errors,self.fetched,self.loaded = [],[],False; url = Path(path).resolve().as_uri() if not re.match(r'\w+://', str(path)) else path
        self.call('Page.navigate', url=url); end = time.time()+60
        while not self.loaded:
            assert time.time()<end, f'{path} does not load'
            self._event(m) if 'method' in (m := json.loads(self.ws.recv())) else None
        return self
    def key(self, key, code=None):
        for kind in ('keyDown', 'keyUp'): self.call('Input.dispatchKeyEvent', type=kind, key=key, code=code or key, windowsVirtualKeyCode=dict(Tab=9, ArrowRight=39, ArrowDown=40, Enter=13).get(key, 0))
    def type(self, text): self.call('Input.insertText', text=text)
    def click(self, css):
        x,y = self.run(f'(() => {{ const e = document.querySelector({json.dumps(css)}); e.scrollIntoView({{block: "center", behavior: "instant"}}); const r = e.getBoundingClientRect(); return [r.left+r.width/2, r.top+r.height/2]; }})()')
        for kind in ('mouseMoved', 'mousePressed', 'mouseReleased'): self.call('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left' if kind!='mouseMoved' else 'none', clickCount=1)
    def hover(self, css):
        x,y = self.run(f'(() => {{ const e = document.querySelector({json.dumps(css)}); e.scrollIntoView({{block: "center", behavior: "instant"}}); const r = e.getBoundingClientRect(); return [r.left+5, r.top+5]; }})()')
        self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)
    def shot(self, path): Path(path).parent.mkdir(parents=True, exist_ok=True); Path(path).write_bytes(base64.b64decode(self.call('Page.captureScreenshot', format='png')['data']))
    def close(self):
        self.ws.close(); self.p.terminate(); self.p.wait(20); shutil.rmtree(self.home, ignore_errors=True)
