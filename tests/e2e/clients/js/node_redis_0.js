// node_redis 0.12: callbacks, lower-case names, one connection; `info` first, and nothing else until it is answered.
'use strict'

exports.open = (redis, port, db, emitted) =>
  new Promise((resolve, reject) => {
    const client = redis.createClient(port, '127.0.0.1')
    const inBytes = redis.createClient(port, '127.0.0.1', { return_buffers: true }) // it decides by connection
    let opened = false
    for (const event of ['ready', 'end', 'reconnecting']) client.on(event, () => emitted(event))
    client.on('error', (error) => {
      emitted(`error: ${error.message}`)
      if (!opened) reject(error)
    })

    const callOf = (connection) => (name, ...args) =>
      new Promise((done, fail) => connection.send_command(name, args, (error, reply) => (error ? fail(error) : done(reply))))
    const call = callOf(client)
    const settled = (promise) => promise.catch((error) => error)

    const operations = {
      call,
      callBytes: callOf(inBytes),
      set: (key, value) => call('set', key, value),
      get: (key) => call('get', key),
      getBytes: (key) => callOf(inBytes)('get', key),
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
      multi: (calls) => new Promise((done, fail) => client.multi(calls).exec((error, replies) => (error ? fail(error) : done(replies)))),
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
      if (db) inBytes.select(db)
      if (db) operations.select(db).then(done, reject)
      else done()
    })
  })
