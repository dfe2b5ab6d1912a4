// node_redis 0.12: callbacks, lower-case names, one connection; `info` first, and nothing else until it is answered.
'use strict'

exports.open = (redis, port, db, emitted) =>
  new Promise((resolve, reject) => {
    // detect_buffers: a call with a Buffer among its arguments is answered in Buffers
    const client = redis.createClient(port, '127.0.0.1', { detect_buffers: true })
    let opened = false
    for (const event of ['ready', 'end', 'reconnecting']) client.on(event, () => emitted(event))
    client.on('error', (error) => {
      emitted(`error: ${error.message}`)
      if (!opened) reject(error)
    })

    const call = (name, ...args) =>
      new Promise((done, fail) => client.send_command(name, args, (error, reply) => (error ? fail(error) : done(reply))))
    const settled = (promise) => promise.catch((error) => error)

    const operations = {
      call,
      set: (key, value) => call('set', key, value),
      get: (key) => call('get', key),
      getBytes: (key) => call('get', Buffer.from(key)),
      mset: (pairs) => call('mset', ...Object.entries(pairs).flat()),
      mget: (keys) => call('mget', ...keys),
      del: (keys) => call('del', ...keys),
      // the two that the library gives a form of their own: an object in, an object out
      hset: (key, fields) =>
        new Promise((done, fail) => client.hmset(key, fields, (error, reply) => (error ? fail(error) : done(reply)))),
      hgetall: (key) =>
        new Promise((done, fail) => client.hgetall(key, (error, reply) => (error ? fail(error) : done(reply)))),
      // several in one go, without waiting: what it has in place of a pipeline
      pipeline: (calls) => Promise.all(calls.map(([name, ...args]) => settled(call(name, ...args)))),
      select: (number) => new Promise((done, fail) => client.select(number, (error) => (error ? fail(error) : done('OK')))),
      info: () => call('info'),
      infoAtConnect: async () => client.server_info,
      close: async () => void client.end(),
    }
    client.once('ready', () => {
      const done = () => {
        opened = true
        resolve(operations)
      }
      if (db) operations.select(db).then(done, reject)
      else done()
    })
  })
