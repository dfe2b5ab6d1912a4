// node_redis 0.12: callbacks, lower-case names, one connection; `info` first, and nothing else until it is answered.
'use strict'

exports.open = (redis, port, db, emitted) =>
  new Promise((resolve, reject) => {
    const client = redis.createClient(port, '127.0.0.1')
    const inBytes = redis.createClient(port, '127.0.0.1', { return_buffers: true }) // it decides by connection
    let opened = false
    for (const event of ['ready', 'end', 'reconnecting']) client.on(event, () => emitted(event))
    const failed = (error) => {
      emitted(`error: ${error.message}`)
      if (!opened) reject(error)
    }
    for (const connection of [client, inBytes]) connection.on('error', failed) // one that nobody listens to ends node

    const callOf = (connection) => (name, ...args) =>
      new Promise((done, fail) => connection.send_command(name, args, (error, reply) => (error ? fail(error) : done(reply))))
    const call = callOf(client)
    const received = []
    client.on('message', (channel, message) => received.push([channel, message]))
    client.on('pmessage', (pattern, channel, message) => received.push([pattern, channel, message]))

    const settled = (promise) => promise.catch((error) => error)

    // one method of the library, and what it calls back with
    const ask = (object, name, ...args) =>
      new Promise((done, fail) => object[name](...args, (error, reply) => (error ? fail(error) : done(reply))))
    const scan = async (pattern, cursor, keys) => {
      const [next, some] = await call('scan', cursor, ...(pattern ? ['match', pattern] : []))
      return parseInt(next, 10) ? scan(pattern, parseInt(next, 10), keys.concat(some)) : keys.concat(some)
    }

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
      hset: (key, fields) => ask(client, 'hmset', key, fields),
      hgetall: (key) => ask(client, 'hgetall', key),
      // several in one go, without waiting: what it has in place of a pipeline
      pipeline: (calls) => Promise.all(calls.map(([name, ...args]) => settled(call(name, ...args)))),
      multi: (calls) => ask(client.multi(calls), 'exec'),
      scan: (pattern) => scan(pattern, 0, []),
      eval: (script, keys, args) => ask(client, 'eval', script, keys.length, ...keys, ...args), // by its SHA1 first
      pop: (key, seconds) => ask(client, 'blpop', key, seconds),
      publish: (channel, message) => ask(client, 'publish', channel, message),
      subscribe: (channel) => ask(client, 'subscribe', channel),
      psubscribe: (pattern) => ask(client, 'psubscribe', pattern),
      // as loop-server does: the second goes out before the first is answered, which nobody waits for
      expired: () => {
        client.config('set', 'notify-keyspace-events', 'Ex')
        return ask(client, 'psubscribe', '__keyevent*__:expired')
      },
      received: async () => received,
      // both connections, so that none of them is still at it when the next step begins
      select: (number) => Promise.all([client, inBytes].map((each) => ask(each, 'select', number))).then(() => 'OK'),
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
