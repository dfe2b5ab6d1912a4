// A key-value service over HTTP, with its data in Redis behind pyproxy. While a shard is being promoted, those of its
// clients whose keys live there get 503 with Retry-After and Backoff, in seconds; everybody else notices nothing.
//
//   GET /:key                200 with the value, or 404
//   PUT /:key                204; the body is the value
//   GET /__heartbeat__       200 if every shard can be written to, else 503 with both headers
//   GET /__lbheartbeat__     200 while this process runs: for the load balancer
//
//   PORT=8001 REDIS_PORT=6380 node app.js
'use strict'

const express = require('express')
const redis = require('redis') // node_redis 0.12.1: callbacks, and one pipelined connection

const PORT = Number(process.env.PORT || 8001)
const REDIS_PORT = Number(process.env.REDIS_PORT || 6380)
const HOST = '127.0.0.1'

const DEFAULT_BACKOFF_S = 5 // where nobody says how long it will take
const ANSWER_MS = Number(process.env.ANSWER_MS || 10000) // node_redis waits for ever; longer than pyproxy's hold_s and timeouts.reply_s together

const client = redis.createClient(REDIS_PORT, HOST, {
  enable_offline_queue: false, // while the proxy cannot be reached, fail at once instead of queueing without bound
  retry_max_delay: 1000 // ms between attempts to connect; without it they get rarer for ever
})
// Without a listener node_redis throws, and the process ends.
client.on('error', (error) => console.error(`redis: ${error.message}`))

// One command; done(error, reply) is called once, and always with an error if there is no reply in time.
function ask (command, args, done) {
  let answered = false
  const answer = (error, reply) => {
    if (answered) return
    answered = true
    clearTimeout(timer)
    done(error, reply)
  }
  const timer = setTimeout(() => answer(new Error(`no reply within ${ANSWER_MS} ms`)), ANSWER_MS)
  client.send_command(command, args, answer)
}

// What an error means for whoever waits for the answer.
//
// pyproxy's -TRYAGAIN says that nothing was applied, and mostly how long it will take; its -UNCERTAIN that a write may have
// been. So may it where the connection was lost; what never left this process surely was not.
function understand (error) {
  const text = error.message.replace(/^(Error: )?-?/, '')
  if (/^(ERR|WRONGTYPE)\b/.test(text)) return { status: 500, applied: 'no' } // to try again is no use
  const hint = /\bretry_after_ms=(\d+)/.exec(text)
  const backoff = /^TRYAGAIN\b/.test(text) && hint ? Math.max(1, Math.ceil(hint[1] / 1000)) : DEFAULT_BACKOFF_S
  const never = /^TRYAGAIN\b.*\bapplied=no\b/.test(text) || /^send_command: stream not writeable/.test(text)
  return { status: 503, backoff, applied: never ? 'no' : 'unknown' }
}

// 503 with both headers. What exactly is wrong, and where, is for the log only.
function refuse (res, error) {
  const { status, backoff, applied } = understand(error)
  console.error(`${res.req.method} ${status} applied=${applied}: ${error.message}`)
  if (status === 503) busy(res, backoff)
  res.status(status).json({ code: status, applied, message: `not done, applied=${applied}` })
}

function busy (res, seconds) {
  res.set({ 'Retry-After': String(seconds), Backoff: String(seconds), 'Cache-Control': 'no-store' })
}

const app = express()
app.disable('x-powered-by')
app.disable('etag')

app.get('/__lbheartbeat__', (req, res) => res.status(200).json({}))

app.get('/__heartbeat__', (req, res) => {
  ask('info', ['proxy'], (error, info) => {
    if (error) return refuse(res, error)
    const found = /^proxy_backoff_seconds:(\d+)/m.exec(info)
    const seconds = found ? Number(found[1]) : 0
    if (seconds) busy(res, seconds)
    res.status(seconds ? 503 : 200).json({ storage: seconds === 0 })
  })
})

app.get('/:key', (req, res) => {
  ask('get', [req.params.key], (error, value) => {
    if (error) return refuse(res, error)
    if (value === null) return res.status(404).json({ code: 404, message: 'no such key' })
    res.type('text/plain').send(value)
  })
})

app.put('/:key', express.text({ type: () => true, limit: '1mb' }), (req, res) => {
  const value = typeof req.body === 'string' ? req.body : '' // an empty body is not parsed
  ask('set', [req.params.key, value], (error) => (error ? refuse(res, error) : res.status(204).end()))
})

const server = app.listen(PORT, HOST, (error) => {
  if (error) throw error
  console.log(`listening on http://${HOST}:${PORT}, redis at ${HOST}:${REDIS_PORT}`)
})

process.on('SIGTERM', () => {
  server.close(() => client.end())
})
