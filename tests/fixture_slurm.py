"A Slurm of one node, in a folder, for as long as a test lasts; nothing is installed"
import os, shutil, socket, subprocess, time
from contextlib import contextmanager
from pathlib import Path

def absent():
    "Why there can be no Slurm here; '' where there can"
    if lost := [t for t in ('slurmctld', 'slurmd', 'sbatch', 'squeue', 'munged') if not shutil.which(t)]: return f"{', '.join(lost)} not found: install slurm-wlm and munge (Debian) to run this test"
    return 'slurmctld and slurmd need root' if os.geteuid() else ''

CONF = '''ClusterName=one
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={d}/munge.sock
CryptoType=crypto/munge
SlurmctldPort={p1}
SlurmdPort={p2}
SlurmctldPidFile={d}/ctld.pid
SlurmdPidFile={d}/d.pid
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool
SlurmctldLogFile={d}/ctld.log
SlurmdLogFile={d}/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName=one Nodes={host} Default=YES MaxTime=INFINITE State=UP
'''

@contextmanager
def slurm(d):
    "SLURM_CONF of a running cluster with the partition `one`"
    d = Path(d); d.mkdir(parents=True, exist_ok=True); os.chmod(d, 0o755); (d/'state').mkdir(); (d/'spool').mkdir(); host = socket.gethostname().split('.')[0]; ports = []
    for _ in range(2):
        with socket.socket() as s: s.bind(('', 0)); ports.append(s.getsockname()[1])
    (d/'slurm.conf').write_text(CONF.format(host=host, d=d, p1=ports[0], p2=ports[1], cpus=os.cpu_count())); (d/'munge.key').write_bytes(os.urandom(128)); (d/'munge.key').chmod(0o400)
    env = {**os.environ, 'SLURM_CONF': str(d/'slurm.conf')}; run = lambda *c, wait=True: subprocess.Popen(c, env=env, stdout=subprocess.DEVNULL, stderr=open(d/'said.log', 'a'))
    (d/'bin').mkdir(); (d/'bin'/'srun').write_text(f'#!/bin/sh\nSLURM_CONF={d}/slurm.conf exec {shutil.which("srun")} "$@"\n'); (d/'bin'/'srun').chmod(0o755) # a job does not inherit SLURM_CONF, and there is no /etc/slurm
    env['PATH'] = f"{d}/bin{os.pathsep}{env['PATH']}"
    procs = [run('munged', '--foreground', '--force', f'--socket={d}/munge.sock', f'--key-file={d}/munge.key', f'--pid-file={d}/munge.pid', f'--log-file={d}/munge.log', f'--seed-file={d}/munge.seed')]; time.sleep(1)
    procs += [run('slurmctld', '-D', '-f', str(d/'slurm.conf'))]; time.sleep(2); procs += [run('slurmd', '-D', '-N', host, '-f', str(d/'slurm.conf'))]
    try:
        for _ in range(60):
            s = subprocess.run(['sinfo', '-h', '-o', '%T'], env=env, capture_output=True, text=True).stdout
            if 'idle' in s: break
            time.sleep(1)
        else: raise RuntimeError(f"Slurm did not start: {s} {(d/'said.log').read_text()[-500:]} {(d/'ctld.log').read_text()[-800:] if (d/'ctld.log').exists() else ''}")
        yield env
    finally:
        for p in reversed(procs): p.terminate()
        for p in procs:
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill()
