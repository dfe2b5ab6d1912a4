// bullmq over the proxy: node run.js PORT
//
// A queue, its worker, its events and a flow, each with connections of its own. What came of the jobs goes out as one
// line of JSON. All keys of bullmq have the prefix, and with braces in it they are on one shard: its scripts need that.
'use strict'

const { FlowProducer, Queue, QueueEvents, Worker } = require('bullmq')

const options = { connection: { host: '127.0.0.1', port: Number(process.argv[2]) }, prefix: '{bull}' }
const WAIT_MS = 20000

const work = {
  double: (job) => job.data.number * 2,
  fail: () => {
    throw new Error('it fails')
  },
  part: (job) => job.data.number,
  sum: async (job) => Object.values(await job.getChildrenValues()).reduce((a, b) => a + b, 0)
}

async function main () {
  const queue = new Queue('jobs', options)
  const events = new QueueEvents('jobs', options)
  const flows = new FlowProducer(options)
  const ticks = []
  const ticked = new Promise((resolve) => {
    work.tick = () => ticks.push('tick') >= 3 && resolve()
  })
  const worker = new Worker('jobs', async (job) => work[job.name](job), { ...options, concurrency: 5 })
  for (const each of [queue, events, flows, worker]) each.on('error', (error) => console.error(error))
  await events.waitUntilReady()

  const finished = (job) => job.waitUntilFinished(events, WAIT_MS)
  const said = {}
  said.one = await finished(await queue.add('double', { number: 21 }))
  said.many = await Promise.all(
    (await queue.addBulk([1, 2, 3].map((number) => ({ name: 'double', data: { number } })))).map(finished)
  )
  said.failed = await finished(await queue.add('fail', {})).catch((error) => error.message)
  const delayed = await queue.add('double', { number: 5 }, { delay: 300 })
  said.delayed = [await delayed.getState(), await finished(delayed)]
  said.important = await finished(await queue.add('double', { number: 6 }, { priority: 1 }))
  await queue.upsertJobScheduler('ticker', { every: 200 }, { name: 'tick' })
  await ticked
  said.scheduler = await queue.removeJobScheduler('ticker')
  const flow = await flows.add({
    name: 'sum',
    queueName: 'jobs',
    children: [1, 2, 3].map((number) => ({ name: 'part', data: { number }, queueName: 'jobs' }))
  })
  said.flow = await finished(flow.job)
  said.failures = (await queue.getJobCounts('failed')).failed
  await Promise.all([worker.close(), events.close(), flows.close(), queue.close()])
  console.log(JSON.stringify(said))
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
