// BullMQ's side of each measurement: node bench.mjs WORK [ARGS]. Prints a line of JSON.
// Finished jobs are removed at once, which is the quickest it can do.
import { Queue, Worker } from 'bullmq';
import { readFileSync } from 'node:fs';

const [work, ...args] = process.argv.slice(2);
const url = new URL(process.env.REDIS_URL);
const connection = { host: url.hostname, port: Number(url.port), db: Number(url.pathname.slice(1) || 0), maxRetriesPerRequest: null };
const name = 'bench';
const options = { removeOnComplete: true, removeOnFail: true };
const data = { filler: 'x'.repeat(200 - '{"filler":""}'.length) };
const seconds = (since) => Number(process.hrtime.bigint() - since) / 1e9;
const usage = () => {
  const cpu = process.resourceUsage();
  const peak = /VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'));
  return { cpu_seconds: (cpu.userCPUTime + cpu.systemCPUTime) / 1e6, memory_mb: Number(peak[1]) / 1024 };
};
const report = (row) => console.log(JSON.stringify({ ...row, ...usage() }));

async function load(jobs, bulk) {
  const queue = new Queue(name, { connection });
  await queue.waitUntilReady();
  const began = process.hrtime.bigint();
  for (let left = jobs; left > 0; left -= bulk) {
    const n = Math.min(left, bulk);
    await queue.addBulk(Array.from({ length: n }, () => ({ name: 'noop', data, opts: options })));
  }
  const took = seconds(began);
  await queue.close();
  return { seconds: took, jobs };
}

async function single(jobs, inFlight) {
  const queue = new Queue(name, { connection });
  await queue.waitUntilReady();
  const began = process.hrtime.bigint();
  const each = Math.floor(jobs / inFlight);
  await Promise.all(Array.from({ length: inFlight }, async () => {
    for (let i = 0; i < each; i += 1) await queue.add('noop', data, options);
  }));
  const took = seconds(began);
  await queue.close();
  return { seconds: took, jobs: each * inFlight };
}

async function drain(jobs, concurrency, sleepMs) {
  let left = jobs;
  let running = 0;
  let most = 0;
  let done;
  const all = new Promise((resolve) => { done = resolve; });
  const before = usage().cpu_seconds;
  const began = process.hrtime.bigint();
  const worker = new Worker(name, async () => {
    if (sleepMs) {
      running += 1;
      most = Math.max(most, running);
      await new Promise((resolve) => { setTimeout(resolve, sleepMs); });
      running -= 1;
    }
    left -= 1;
    if (left === 0) done();
  }, { connection, concurrency });
  await all;
  const took = seconds(began);
  const cpu = usage().cpu_seconds - before;
  await worker.close();
  return { seconds: took, jobs, work_cpu_seconds: cpu, most_running: most };
}

async function pickup(jobs) {
  const queue = new Queue(name, { connection });
  let started;
  const worker = new Worker(name, async () => started(process.hrtime.bigint()), { connection, concurrency: 10 });
  await worker.waitUntilReady();
  const waits = [];
  for (let i = 0; i < jobs + 20; i += 1) {
    await new Promise((resolve) => { setTimeout(resolve, 5); });
    const began = new Promise((resolve) => { started = resolve; });
    const sent = process.hrtime.bigint();
    await queue.add('noop', data, options);
    const at = await began;
    if (i >= 20) waits.push(Number(at - sent) / 1e3);
  }
  await worker.close();
  await queue.close();
  waits.sort((a, b) => a - b);
  const at = (share) => waits[Math.min(waits.length - 1, Math.floor(waits.length * share / 100))];
  return { p50_us: at(50), p99_us: at(99), jobs };
}

const n = args.map(Number);
const works = {
  load: () => load(n[0], 1000),
  single: () => single(n[0], n[1]),
  drain: () => drain(n[0], n[1], 0),
  slow: () => drain(n[0], n[1], 50),
  pickup: () => pickup(n[0]),
};
report(await works[work]());
process.exit(0);
