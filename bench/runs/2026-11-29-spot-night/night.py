"""The rehearsal of a spot night, as it was run: s3s-fs behind a proxy that fails one request in six, a mock of EC2 metadata.

engine data synth /tmp/sd --train-per-class 6 --val-per-class 2 --size 40; python3 night.py. tests/bucket/night.rs is its kept form."""
import os,random,shutil,signal,socket,subprocess,threading,time,http.server,datetime,hashlib,json,glob
random.seed(20261129)
UP=("127.0.0.1",18014); SRV=None
stats={}
def req(c):
    h=b""
    while not h.endswith(b"\r\n\r\n"):
        d=c.recv(1)
        if not d: return None
        h+=d
    n=0
    for l in h.decode().split("\r\n"):
        if l.lower().startswith("content-length:"): n=int(l.split(":")[1])
    b=b""
    while len(b)<n:
        d=c.recv(1<<16)
        if not d: return None
        b+=d
    return h,b
def handle(c):
    try:
        r=req(c)
        if not r: return
        h,b=r; m=h.split(b" ")[0].decode(); p=h.split(b" ")[1].decode()
        f=random.choice(["refuse","slow","cutreq","cutans","500","503","chreq","chans"]) if random.random()<1/6 else "none"
        if f=="chreq" and m!="PUT": f="none"
        if f=="chans" and (m!="GET" or "list-type=" in p): f="none"
        stats[f]=stats.get(f,0)+1
        if f=="refuse": return
        if f=="slow": time.sleep(.7)
        if f in("500","503"):
            t=b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"
            c.sendall(b"HTTP/1.1 %s X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"%(f.encode(),len(t))+t); return
        if f=="chreq" and b: b=bytearray(b); b[len(b)//2]^=1; b=bytes(b)
        u=socket.create_connection(UP); a,z=h.split(b"\r\n",1)
        u.sendall(a+b"\r\nConnection: close\r\n"+z)
        if f=="cutreq": u.sendall(b[:len(b)//2]); u.close(); return
        u.sendall(b); ans=b""
        while True:
            d=u.recv(1<<16)
            if not d: break
            ans+=d
        if f=="cutans": ans=ans[:len(ans)//2]
        if f=="chans":
            i=ans.find(b"\r\n\r\n")+4
            if i<len(ans): ans=bytearray(ans); k=i+(len(ans)-i)//2; ans[k]^=1; ans=bytes(ans)
        c.sendall(ans)
    except OSError: pass
    finally: c.close()
L=socket.socket(); L.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); L.bind(("127.0.0.1",18015)); L.listen(64)
def acc():
    while True:
        c,_=L.accept(); threading.Thread(target=handle,args=(c,),daemon=True).start()
threading.Thread(target=acc,daemon=True).start()
goes=[None]
class H(http.server.BaseHTTPRequestHandler):
    def a(s,t,c=200):
        s.send_response(c); s.send_header("Content-Length",str(len(t))); s.end_headers(); s.wfile.write(t.encode())
    def do_PUT(s): s.a("tok")
    def do_GET(s):
        if "instance-action" in s.path and goes[0]: s.a('{"action": "terminate", "time": "%sZ"}'%goes[0].strftime("%Y-%m-%dT%H:%M:%S"))
        else: s.a("",404)
    def log_message(s,*a): pass
threading.Thread(target=http.server.ThreadingHTTPServer(("127.0.0.1",18197),H).serve_forever,daemon=True).start()
shutil.rmtree("/tmp/s3d",True); os.makedirs("/tmp/s3d/bkt")
SRV=subprocess.Popen(["s3s-fs","--host","127.0.0.1","--port","18014","--access-key","AK","--secret-key","SK","/tmp/s3d"],stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL)
EP=int(os.environ.get("NIGHT_EPOCHS","400")); E="target/release/engine"
env=dict(os.environ,AWS_ENDPOINT_URL="http://127.0.0.1:18015",AWS_ACCESS_KEY_ID="AK",AWS_SECRET_ACCESS_KEY="SK",AWS_REGION="us-east-1",AWS_EC2_METADATA_SERVICE_ENDPOINT="http://127.0.0.1:18197")
def cmd(out,remote=True):
    c=[E,"train","--data","/tmp/sd","--output",out]
    for s in ["model.arch=resnet-tiny","data.resolution=32","data.batch=8","epochs=%d"%EP,"checkpoint.every_steps=5","schedule.warmup_epochs=1","optim.lr=0.5"]: c+=["--set",s]
    return c+(["--remote","s3://bkt/night"] if remote else [])
shutil.rmtree("/tmp/whole",True); t0=time.time()
subprocess.run(cmd("/tmp/whole",False),env=env,check=True,stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL)
whole=time.time()-t0; print("undisturbed: %.1f s"%whole,flush=True)
pace=whole/8; t0=time.time()
shutil.rmtree("/tmp/nr",True); kills=notices=disks=0; i=0
while i<10:
    i+=1; goes[0]=None
    p=subprocess.Popen(cmd("/tmp/nr"),env=env,stdout=subprocess.DEVNULL,stderr=open("/tmp/nr.err","w"))
    time.sleep(random.random()*pace)
    if p.poll() is not None: print(i,"ended",p.returncode,open("/tmp/nr.err").read()); break
    if i%2==0:
        goes[0]=datetime.datetime.utcnow()+datetime.timedelta(seconds=120); b=time.time(); p.wait(); notices+=1
        print(i,"notice: rc",p.returncode,"after %.1f s:"%(time.time()-b),open("/tmp/nr.err").read().strip().split("\n")[-1],flush=True)
    else: p.kill(); p.wait(); kills+=1; print(i,"killed:",open("/tmp/nr.err").read().strip().split("\n")[0][:60],flush=True)
    if random.random()<.5 or i==2: shutil.rmtree("/tmp/nr",True); disks+=1; print(i,"disk lost",flush=True)
goes[0]=None
r=subprocess.run(cmd("/tmp/nr"),env=env,stdout=subprocess.DEVNULL,stderr=subprocess.PIPE,text=True); print("end: rc",r.returncode,r.stderr.strip().split("\n")[-1])
print("kills",kills,"notices",notices,"disks",disks,"requests",stats,"%.0f s"%(time.time()-t0))
m=json.load(open("/tmp/s3d/bkt/night/manifest.json"))
want={os.path.basename(f):hashlib.sha256(open(f,"rb").read()).hexdigest() for f in glob.glob("/tmp/whole/checkpoints/e*.safetensors")}
got={"e%04d-s%08d.safetensors"%(s["epoch"],s["step"]):hashlib.sha256(open("/tmp/s3d/bkt/night/"+s["object"],"rb").read()).hexdigest() for s in m["checkpoints"]}
print("bucket's checkpoints == undisturbed run's:",got==want,len(got),len(want), sorted(set(want)^set(got))[:6])
for n in("last","best"): print(n, "same" if open("/tmp/nr/checkpoints/%s.safetensors"%n,"rb").read()==open("/tmp/whole/checkpoints/%s.safetensors"%n,"rb").read() else "DIFFERS")
ep=lambda d:[l.split("  timestamp")[0] for l in open(d+"/logs.md") if l.startswith("epoch:")]
print("logs.md:", ep("/tmp/nr")==ep("/tmp/whole"),len(ep("/tmp/nr")))
st=lambda d:[l.split(',"clock"')[0] for l in open(d+"/metrics.jsonl") if '"kind":"run"' not in l]
print("metrics.jsonl:", st("/tmp/nr")==st("/tmp/whole"),len(st("/tmp/nr")))
there=sorted(os.path.relpath(f,"/tmp/s3d/bkt/night") for f in glob.glob("/tmp/s3d/bkt/night/**",recursive=True) if os.path.isfile(f))
prom=sorted([s["object"] for s in m["checkpoints"]]+list(m["files"])+["manifest.json"])
print("only the promised objects:",there==prom, sorted(set(there)^set(prom)))
SRV.kill()
