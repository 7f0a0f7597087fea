"""A Slurm cluster of one node on loopback, from the distribution's packages, without systemd, accounting or root.

    with cluster(folder) as environment: ...      # for every client: SLURM_CONF, and an `sacct` that asks scontrol

Debian: apt-get install --no-install-recommends slurm-wlm.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
AVAILABLE = all(shutil.which(name, path=PATH) for name in ("munged", "slurmctld", "slurmd", "sbatch"))
CONFIG = """
ClusterName=mini
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={root}/munge/sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
KillWait=5
MinJobAge=3600
ReturnToService=2
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# submitit reads job states from sacct, which needs an accounting database; scontrol knows them too.
SACCT = r"""#!/bin/bash
echo 'JobID|State|NodeList'
while [ $# -gt 0 ]; do [ "$1" = -j ] && { scontrol -o show job "$2" 2>/dev/null; shift; }; shift; done |
awk '/JobId=/{delete v; for(i=1;i<=NF;i++){k=$i; sub(/=.*/,"",k); if(!(k in v)) v[k]=substr($i,length(k)+2)}
  id=v["JobId"]; if("ArrayJobId" in v){t=v["ArrayTaskId"]; id=v["ArrayJobId"] "_" (t~/^[0-9]+$/ ? t : "[" t "]")}
  print id "|" v["JobState"] "|" v["NodeList"]}'
"""


@contextmanager
def cluster(root: Path) -> Iterator[dict[str, str]]:
    """A running cluster with its state in `root`, a new folder; ended with all its jobs on exit."""
    for name in ("munge", "state", "spool", "log", "bin"):
        (root / name).mkdir(parents=True)
    for folder in (root, root / "munge"):
        folder.chmod(0o755)
    key = root / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    (root / "slurm.conf").write_text(CONFIG.format(root=root, user=getpass.getuser(), cpus=os.cpu_count()))
    (root / "bin" / "sacct").write_text(SACCT)
    (root / "bin" / "sacct").chmod(0o755)
    changes = {"SLURM_CONF": str(root / "slurm.conf"), "PATH": f"{root / 'bin'}{os.pathsep}{PATH}"}
    environment = {**os.environ, **changes}
    munge = {
        name: f"--{name}-file={root}/munge/{file}" for name, file in (("key", "key"), ("pid", "pid"), ("log", "log"))
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (root / "log" / command[0]).open("wb") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def ask(*command: str) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30).stdout.strip()

    def wait(what: str, condition: object) -> None:
        end = time.monotonic() + 60
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < end, f"Slurm: waited in vain for {what}; see {root / 'log'}"
            time.sleep(0.2)

    try:
        seed = f"--seed-file={root}/munge/seed"
        start("munged", "--force", "--foreground", f"--socket={root}/munge/sock", *munge.values(), seed)
        wait("munge", (root / "munge" / "sock").exists)
        start("slurmctld", "-D")
        time.sleep(1)
        start("slurmd", "-D")
        wait("an idle node", lambda: ask("sinfo", "-h", "-o", "%T") == "idle")
        yield changes
        ask("scancel", "-u", getpass.getuser())
        wait("the end of its jobs", lambda: ask("squeue", "-h") == "")
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(20)
