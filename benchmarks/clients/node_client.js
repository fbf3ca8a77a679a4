// SPDX-License-Identifier: Apache-2.0
/* The mariadb package of Node, which knows what the other clients do not: results without EOF packets, queries
 * sent before the answers to those before, executions of "the statement prepared last".
 *
 *   node node_client.js HOST PORT [FEATURE...]        with NODE_PATH; waits for a line, tells calls as JSON lines
 *
 * https://mariadb.com/kb/en/nodejs-connection-options/ */
'use strict';
const net = require('net');
const readline = require('readline');
const mariadb = require('mariadb');

const [host, port, ...names] = process.argv.slice(2);
let feature = '';

class Session {
  static async open(options) {
    const session = new Session();
    session.socket = host.startsWith('/') ? net.connect(host) : net.connect(Number(port), host);
    await new Promise((resolve) => session.socket.once('connect', resolve));
    const target = { host: '127.0.0.1', port: Number(port), user: 'tester', database: 'test' };
    const stream = () => session.socket;
    session.connection = await mariadb.createConnection({ ...target, stream, ...options });
    return session;
  }

  /** method: query (text) or execute (prepared by the package, and kept). */
  async call(method, text, values, fails = false) {
    const start = process.hrtime.bigint();
    let rows = 0, error = '';
    try {
      const result = await this.connection[method](text, values);
      rows = Array.isArray(result) ? result.length : 0;
    } catch (raised) {
      if (!fails) throw raised;
      error = String(raised.errno);
    }
    const end = process.hrtime.bigint();
    const times = `"start_ns": ${start}, "end_ns": ${end}`; // JSON.stringify refuses integers of this size
    const own = JSON.stringify({ feature, text, rows, error, port: this.socket.localPort || 0 });
    console.log(`{${times}, ${own.slice(1)}`);
  }
}

const features = {
  async without_eof() {
    const session = await Session.open({ pipelining: false });
    await session.call('query', 'SELECT seq FROM seq_1_to_23');
    await session.call('query', 'SELECT seq FROM seq_1_to_23 WHERE seq > 100');
    await session.call('query', 'SELEC 1', undefined, true);
    await session.call('query', 'SET @a = 1');
    await session.connection.end();
  },

  async pipelined() {
    const session = await Session.open({ pipelining: true });
    const texts = ['SELECT 0', 'SELECT seq FROM seq_1_to_7', 'SELECT no_such_column', 'SET @a = 1', 'SELECT 4'];
    await Promise.all(texts.map((text) => session.call('query', text, undefined, text.includes('no_such'))));
    await session.connection.end();
  },

  async prepared() {
    const session = await Session.open({ pipelining: true, prepareCacheLength: 1 });
    for (const value of [1, 2]) await session.call('execute', 'SELECT seq FROM seq_1_to_5 WHERE seq > ?', [value]);
    await session.call('execute', 'SELECT ? AS other', ['text']); // the first is closed
    await session.connection.end();
  },

  async compressed() {
    const session = await Session.open({ pipelining: true, compress: true });
    const texts = ["SELECT REPEAT('abc', 300) FROM seq_1_to_20", 'SELECT 1', `SELECT '${'z'.repeat(2000)}' AS wide`];
    await Promise.all(texts.map((text) => session.call('query', text)));
    await session.connection.end();
  },
};

readline.createInterface({ input: process.stdin }).once('line', async function () {
  this.close();
  for (feature of names.length ? names : Object.keys(features)) await features[feature]();
});
