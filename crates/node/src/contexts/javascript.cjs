'use strict';
/**
 * The JavaScript interpreter of a code context: executes cells one after another in the global scope.
 *
 * Started as `node <this file>` inside a sandbox, with one end of a Unix stream socketpair as descriptor 3. Both
 * directions carry one JSON document a line: `execute` and `interrupt` come in, `ready`, `result`, `error` and `done` go
 * out; `save` and `load` come in with a program that does it, and are answered by `values`. Descriptors 0, 1 and 2 belong
 * to the user's code.
 *
 * Two threads. The main one runs the cells; the worker owns the control channel, so that it is read while a cell is busy
 * and no monkeypatch of the user's reaches it. An interrupt is first asked for by message: an event loop that still turns
 * answers it. One that does not is terminated by the inspector, which unwinds everything on the main thread's stack, this
 * file's frames too; the message, still queued, then ends the cell.
 *
 * Invariant: every `execute` is answered by exactly one `done`, after all that the cell printed was written; the worker
 * passes the next `execute` on only when no termination can be under way any more.
 */

const { isMainThread, Worker, parentPort, workerData } = require('node:worker_threads');

const CONTROL = 3;
const BAD_LINE = 70;
const INTERRUPTED = 130;
const LINE_LIMIT = 12 << 20;
const TEXT_LIMIT = 64 << 10;
const VALUE_LIMIT = 16 << 10;
const NAME_LIMIT = 256;
const RESULT_LIMIT = 256;
const MIME_LIMIT = 32;
// Milliseconds that an event loop has for its answer before its cell is terminated.
const PATIENCE = 100;

/** What both threads see: the number of the last interrupt, or probe, that the main thread has answered. */
const ANSWERED = 0;

if (isMainThread) {
  runCells();
} else {
  keepChannel();
}

/** The worker: lines in, lines out, and interrupts. */
function keepChannel() {
  const { Socket } = require('node:net');
  const shared = new Int32Array(workerData);
  const socket = new Socket({ fd: CONTROL, readable: true, writable: true });
  const queue = [];
  let current = null; // what the main thread executes: { token, id }
  let tokens = 0;
  let asked = 0;
  let settling = false;
  let session = null;
  let rest = [];

  socket.on('data', receive);
  socket.on('end', () => leave(0));
  socket.on('error', () => leave(0));
  parentPort.on('message', report);

  function receive(chunk) {
    let start = 0;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, start)) {
      const line = Buffer.concat([...rest, chunk.subarray(start, end)]);
      rest = [];
      start = end + 1;
      accept(line);
    }
    if (start < chunk.length) rest.push(chunk.subarray(start));
  }

  function accept(line) {
    let request;
    try {
      request = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(line));
    } catch {
      return leave(BAD_LINE);
    }
    if (['execute', 'save', 'load'].includes(request?.op)) {
      queue.push(request);
      advance();
    } else if (request?.op === 'interrupt' && queue.length > 0) {
      queue.at(-1).interrupted = true; // it is meant for what has not begun yet
    } else if (request?.op === 'interrupt' && current !== null && !current.keeps && !settling) {
      interrupt();
    }
  }

  function advance() {
    if (current !== null || settling || queue.length === 0) return;
    const request = queue.shift();
    const keeps = request.op !== 'execute';
    current = { token: ++tokens, id: request.id ?? null, keeps };
    parentPort.postMessage({ kind: keeps ? 'keep' : 'execute', token: current.token, request });
    if (request.interrupted && !keeps) interrupt();
  }

  /** What the main thread has to say; late words about an execution that was ended are dropped. */
  function report(message) {
    if (message.kind === 'ready') {
      return write({ type: 'ready', language: 'javascript', version: process.versions.node });
    }
    if (current === null || message.token !== current.token) return;
    if (message.kind === 'result') return writeResult(message.main, message.data);
    if (message.kind === 'values') {
      write({ type: 'values', id: current.id, ...message.said });
      current = null;
      return advance();
    }
    const { error, exitCode, leftOut } = message;
    if (leftOut > 0) {
      const note = `${leftOut} more results were left out: an execution has at most ${RESULT_LIMIT}`;
      writeResult(false, [['text/plain', note]]);
    }
    if (error) {
      const name = cut(error.name, NAME_LIMIT);
      const value = cut(error.value, VALUE_LIMIT);
      write({ type: 'error', id: current.id, name, value, traceback: cut(error.traceback, TEXT_LIMIT, 0.25) });
    }
    write({ type: 'done', id: current.id, exit_code: exitCode });
    current = null;
    advance();
  }

  /** Asks, then terminates, until the main thread has answered. */
  function interrupt() {
    const { token } = current;
    settling = true;
    ask({ kind: 'interrupt', token }, () => {
      settling = false;
      advance();
    });
  }

  function ask(message, then) {
    const number = ++asked;
    parentPort.postMessage({ ...message, number });
    let waited = 0;
    const timer = setInterval(() => {
      if (Atomics.load(shared, ANSWERED) >= number) {
        clearInterval(timer);
        then();
      } else if ((waited += 5) >= PATIENCE) {
        clearInterval(timer);
        terminate(() => ask(message, then));
      }
    }, 5);
  }

  function terminate(then) {
    if (session === null) {
      const { Session } = require('node:inspector');
      session = new Session();
      session.connectToMainThread();
    }
    // An idle main thread answers only when it runs again, which the next question makes it do.
    let done = false;
    const once = () => {
      if (!done) then();
      done = true;
    };
    session.post('Runtime.terminateExecution', once);
    setTimeout(once, 20);
  }

  function writeResult(main, data) {
    const items = new Map();
    for (const [mime, text] of data) {
      const bounded = mime === 'text/plain' ? cut(text, TEXT_LIMIT) : text;
      items.set(mime, `${encode(mime)}:${encode(bounded)}`);
    }
    const sizes = new Map([...items].map(([mime, item]) => [mime, Buffer.byteLength(item) + 1]));
    const dropped = [];
    while ([...sizes.values()].reduce((sum, size) => sum + size, 0) > LINE_LIMIT - (64 << 10)) {
      const [largest] = [...sizes].reduce((one, other) => (other[1] > one[1] ? other : one));
      dropped.push(largest);
      items.delete(largest);
      sizes.delete(largest);
    }
    const tail = dropped.length > 0 ? `,"dropped":${encode(dropped)}}` : '}';
    const head = `{"type":"result","id":${encode(current.id)},"main":${main},"data":{`;
    socket.write(`${head}${[...items.values()].join(',')}}${tail}\n`);
  }

  function write(message) {
    socket.write(`${encode(message)}\n`);
  }

  /** JSON in which no half of a surrogate pair is left alone: it has no UTF-8. */
  function encode(value) {
    const whole = (_, item) => (typeof item === 'string' ? item.replace(/\p{Surrogate}/gu, '\ufffd') : item);
    return JSON.stringify(value, whole);
  }

  function cut(text, limit, head = 1) {
    const raw = Buffer.from(text);
    if (raw.length <= limit) return text;
    const room = limit - 64;
    const first = Math.floor(room * head);
    const whole = (part) => part.toString().replace(/^\ufffd+|\ufffd+$/g, '');
    const start = whole(raw.subarray(0, first));
    return `${start}\n[${raw.length - room} bytes left out]\n${whole(raw.subarray(raw.length - (room - first)))}`;
  }

  /** Ends the process: properly where the main thread can, at once where it is busy. */
  function leave(code) {
    parentPort.postMessage({ kind: 'leave', code });
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), PATIENCE);
  }
}

/** The main thread: the user's code, and what becomes of its values. */
function runCells() {
  const inspector = require('node:inspector');
  const path = require('node:path');
  const util = require('node:util');
  const vm = require('node:vm');
  const fs = require('node:fs');
  const Module = require('node:module');
  const { pathToFileURL } = require('node:url');

  class Exit extends Error {
    constructor(code) {
      super(`process.exit(${code})`);
      this.code = code;
    }
  }

  const METHODS = [
    ['text/html', '_repr_html_', '_toHtml'],
    ['text/markdown', '_repr_markdown_', '_toMd'],
    ['image/svg+xml', '_repr_svg_', '_toSvg'],
    ['image/png', '_repr_png_', '_toPng'],
    ['image/jpeg', '_repr_jpeg_', '_toJpeg'],
    ['text/latex', '_repr_latex_', '_toLatex'],
    ['application/json', '_repr_json_', '_toJson'],
    ['application/pdf', '_repr_pdf_', '_toPdf'],
    ['application/javascript', '_repr_javascript_', '_toJavascript'],
  ];
  const INSPECTOR = 'node:inspector';
  const BUNDLES = [Symbol.for('Jupyter.display'), '_repr_mimebundle_', '_toMime'];

  const shared = new SharedArrayBuffer(4);
  const answered = new Int32Array(shared);
  const { inspect } = util;
  const { stringify } = JSON;
  const reallyExit = process.reallyExit.bind(process);
  const session = new inspector.Session();
  const worker = new Worker(__filename, { workerData: shared, execArgv: [], env: {} });
  let current = null; // { token, sent, leftOut, name, source }
  const state = { count: 0 };
  const imported = new Map(); // namespaces of modules, and how they were asked for
  let folder = null;
  let importFrom = null;
  let lastValue;
  let receiver = null; // the inspector's handle of `receive`
  let received;

  session.connect();
  surviveTerminations();
  ownStreams();
  ownProcess();
  ownGlobals();
  session.post('Runtime.evaluate', { expression: 'globalThis[Symbol.for("code context")]' }, (_, { result }) => {
    receiver = result.objectId;
  });
  delete globalThis[Symbol.for('code context')];
  const ours = new Set(Object.getOwnPropertyNames(globalThis));
  worker.on('message', obey);
  worker.on('exit', () => reallyExit(BAD_LINE));
  worker.postMessage({ kind: 'ready' });

  function obey(message) {
    if (message.kind === 'execute') {
      execute(message.token, message.request);
    } else if (message.kind === 'keep') {
      keep(message.token, message.request);
    } else if (message.kind === 'interrupt') {
      if (current?.token === message.token) end(interruption(), INTERRUPTED);
      Atomics.store(answered, ANSWERED, message.number);
    } else if (message.kind === 'leave') {
      reallyExit(message.code);
    }
  }

  // One cell

  function execute(token, request) {
    current = { token, sent: 0, leftOut: 0, name: `cell-${++state.count}`, source: '' };
    const mine = current;
    let expression;
    try {
      prepare(request);
      const code = typeof request.code === 'string' ? request.code : '';
      mine.source = request.language === 'typescript' ? withoutTypes(code) : code;
      expression = `${asExpression(withoutImports(mine.source))}\n//# sourceURL=${mine.name}`;
    } catch (error) {
      return fail(error);
    }
    const options = { expression, replMode: true, awaitPromise: true, objectGroup: mine.name };
    session.post('Runtime.evaluate', options, (failure, answer) => {
      if (current !== mine) return;
      if (failure && /terminated/.test(failure.message)) return end(interruption(), INTERRUPTED);
      if (failure) return fail(new Error(failure.message));
      const { result, exceptionDetails } = answer;
      const value = fetchValue(exceptionDetails ? exceptionDetails.exception ?? result : result);
      session.post('Runtime.releaseObjectGroup', { objectGroup: mine.name });
      if (exceptionDetails) return fail(value, exceptionDetails);
      succeed(value);
    });
  }

  /** Saves or loads the variables by the program that came with the request. */
  async function keep(token, request) {
    let said;
    try {
      const again = (specifier, from) => importer(path.join(from, 'cell.js'))(specifier);
      const tools = { session, fetchValue, require, imported, ours, state, importFrom: again };
      const program = new vm.Script(request.program, { filename: __filename }).runInThisContext()(tools);
      said = await program[request.op](request);
    } catch (error) {
      said = { failure: brief(error) };
    }
    session.post('Runtime.releaseObjectGroup', { objectGroup: 'values' });
    worker.postMessage({ kind: 'values', token, said });
  }

  function prepare(request) {
    for (const [name, value] of Object.entries(request.env ?? {})) {
      if (value === null) delete process.env[name];
      else process.env[name] = String(value);
    }
    if (typeof request.cwd === 'string' && request.cwd !== '') process.chdir(request.cwd);
    if (process.cwd() !== folder) settleIn(process.cwd());
  }

  /** The object itself that the inspector has a handle of. */
  function fetchValue(remote) {
    received = undefined;
    const { objectId, unserializableValue, value } = remote;
    const argument = objectId ? { objectId } : unserializableValue ? { unserializableValue } : { value };
    const call = { objectId: receiver, functionDeclaration: 'function (value) { this(value) }' };
    session.post('Runtime.callFunctionOn', { ...call, arguments: [argument] });
    const fetched = received;
    received = undefined;
    return fetched;
  }

  function succeed(value) {
    if (value !== undefined) {
      if (globalThis._ === lastValue) define('_', (lastValue = value));
      post(true, bundle(value));
    }
    end(null, 0);
  }

  function fail(error, details) {
    if (error instanceof Exit) return end(null, error.code);
    end(explain(error, details), 1);
  }

  function end(error, exitCode) {
    if (current === null) return;
    const { token, leftOut } = current;
    worker.postMessage({ kind: 'done', token, error, exitCode, leftOut });
    current = null;
  }

  // Values

  function bundle(value) {
    const data = new Map();
    const notes = [];
    const rich = value !== null && typeof value === 'object' && !util.types.isProxy(value);
    if (rich) {
      for (const name of BUNDLES) addAll(data, notes, call(value, name, notes));
      for (const [mime, ...names] of METHODS) {
        for (const name of names) {
          if (!data.has(mime)) add(data, notes, mime, call(value, name, notes), name);
        }
      }
    }
    const text = data.get('text/plain') ?? textOf(value);
    data.set('text/plain', [text, ...notes].join('\n'));
    return data;
  }

  function call(value, name, notes) {
    try {
      return typeof value[name] === 'function' ? value[name]() : undefined;
    } catch (error) {
      if (error instanceof Exit) throw error;
      notes.push(`[${String(name)} threw ${brief(error)}]`);
      return undefined;
    }
  }

  function addAll(data, notes, offered) {
    if (offered === null || typeof offered !== 'object') return;
    for (const [mime, item] of Object.entries(offered).slice(0, MIME_LIMIT)) {
      if (mime.length <= NAME_LIMIT) add(data, notes, mime, item, 'the bundle');
    }
  }

  function add(data, notes, mime, item, name) {
    if (item === undefined || item === null) return;
    try {
      data.set(mime, asText(mime, item));
    } catch (error) {
      notes.push(`[${name} gave no ${mime}: ${brief(error)}]`);
    }
  }

  function asText(mime, item) {
    if (typeof item === 'string') return item;
    if (mime === 'application/json' || mime.endsWith('+json')) {
      const text = stringify(item);
      if (typeof text === 'string') return text;
    } else if (item instanceof Uint8Array) {
      const text = mime.startsWith('text/') || mime === 'image/svg+xml' || mime === 'application/javascript';
      return Buffer.from(item).toString(text ? 'utf8' : 'base64');
    }
    throw new TypeError(`${util.types.isPromise(item) ? 'a promise' : typeof item} instead of text`);
  }

  function textOf(value) {
    try {
      return inspect(value, { maxStringLength: TEXT_LIMIT });
    } catch (error) {
      if (error instanceof Exit) throw error;
      return `[a value that cannot be shown: ${brief(error)}]`;
    }
  }

  function brief(error) {
    try {
      return error instanceof Error ? `${error.name}: ${error.message}`.slice(0, 1024) : inspect(error).slice(0, 1024);
    } catch {
      return 'something that cannot be shown';
    }
  }

  /** Shows values while the cell runs; an object whose keys are MIME types is taken as it is. */
  function display(...values) {
    for (const value of values) {
      const data = isBundle(value) ? new Map() : bundle(value);
      if (data.size === 0) {
        const notes = [];
        addAll(data, notes, value);
        if (notes.length > 0) data.set('text/plain', [data.get('text/plain'), ...notes].filter(Boolean).join('\n'));
      }
      if (current === null) process.stdout.write(`${data.get('text/plain') ?? ''}\n`);
      else if (current.sent >= RESULT_LIMIT - 1) current.leftOut += 1;
      else post(false, data);
    }
  }

  function isBundle(value) {
    if (value === null || typeof value !== 'object' || util.types.isProxy(value)) return false;
    const keys = Object.keys(value);
    return keys.length > 0 && keys.every((key) => /^[\w.+-]+\/[\w.+-]+$/.test(key));
  }

  function post(main, data) {
    current.sent += 1;
    worker.postMessage({ kind: 'result', token: current.token, main, data: [...data] });
  }

  // Errors

  function interruption() {
    const value = 'the execution was interrupted';
    return { name: 'InterruptedError', value, traceback: `InterruptedError: ${value}\n` };
  }

  function explain(error, details) {
    try {
      removeOwnFrames(error);
      const isError = util.types.isNativeError(error) || error instanceof Error;
      const name = isError ? String(error.name) : 'Uncaught';
      const value = isError ? String(error.message) : inspect(error);
      const stack = isError ? inspect(error) : `Uncaught ${value}`;
      if (name === 'SyntaxError' && details && !/^\s+at /m.test(stack)) {
        return { name, value, traceback: `${shownLine(details)}${name}: ${value}\n` };
      }
      return { name, value, traceback: `${stack}\n` };
    } catch (failure) {
      return { name: 'Error', value: brief(failure), traceback: `an error that cannot be shown: ${brief(failure)}\n` };
    }
  }

  function shownLine({ lineNumber, columnNumber }) {
    const lines = current.source.split('\n');
    const number = Math.min(lineNumber, lines.length - 1); // the line after the last one is this file's
    const column = Math.min(number < lineNumber ? lines[number].length : columnNumber, 4096);
    return `${current.name}:${number + 1}\n${lines[number].slice(0, 4096)}\n${' '.repeat(column)}^\n`;
  }

  /** Takes the frames under the cell out of the stacks of an error and its causes: they are this file's and Node's. */
  function removeOwnFrames(error, seen = new Set()) {
    if (!util.types.isNativeError(error) || seen.has(error) || seen.size > 64) return;
    seen.add(error);
    try {
      if (typeof error.stack === 'string') error.stack = withoutOwnFrames(error.stack);
      removeOwnFrames(error.cause, seen);
      for (const other of Array.isArray(error.errors) ? error.errors : []) removeOwnFrames(other, seen);
    } catch {
      // a frozen error, or a getter of the user's: it is shown as it is
    }
  }

  function withoutOwnFrames(stack) {
    const lines = stack.split('\n');
    const own = lines.findIndex((line) => /^\s+at /.test(line) && (line.includes(__filename) || line.includes(INSPECTOR)));
    const end = own < 0 ? own : lines.findIndex((line, index) => index > own && !/^\s+at /.test(line));
    return own < 0 ? stack : [...lines.slice(0, own), ...(end < 0 ? [] : lines.slice(end))].join('\n');
  }

  // Source

  function withoutTypes(code) {
    const strip = Module.stripTypeScriptTypes;
    if (typeof strip !== 'function') {
      const error = new Error(`Node ${process.versions.node} does not strip types`);
      error.name = 'LanguageUnavailable';
      throw error;
    }
    const { emitWarning } = process;
    process.emitWarning = () => {}; // it is experimental, which the user need not read in each context
    try {
      return strip(code);
    } finally {
      process.emitWarning = emitWarning;
    }
  }

  /** `{a: 1}` is meant as an object where it can be one, as in Node's own prompt. */
  function asExpression(code) {
    if (!/^\s*\{/.test(code) || /;\s*$/.test(code)) return code;
    try {
      new vm.Script(`(${code}\n)`);
      return `(${code}\n)`;
    } catch {
      return code;
    }
  }

  /**
   * The inspector gives a cell no modules: `import` becomes a call of this file's. Strings, comments, templates and regular
   * expressions are passed over; lines keep their numbers.
   */
  function withoutImports(code) {
    if (!/\bimport\b/.test(code)) return code;
    const skip = /\/\/[^\n]*|\/\*[^]*?\*\/|'(?:[^'\\\n]|\\[^])*'|"(?:[^"\\\n]|\\[^])*"/y;
    const regex = /\/(?![*/])(?:[^\\/[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*/y;
    const word = /[\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*|\d[\w.]*/uy;
    const take = (pattern, at) => ((pattern.lastIndex = at), pattern.exec(code));
    const braces = []; // for each open brace, whether it ends a template's expression
    let out = '';
    let at = 0;
    let before = ''; // the last token, which tells a division from a regular expression
    const template = (from) => {
      let end = from;
      while (end < code.length && code[end] !== '`' && !code.startsWith('${', end)) end += code[end] === '\\' ? 2 : 1;
      const opens = code.startsWith('${', end);
      if (opens) braces.push(true);
      before = opens ? '{' : '`';
      return Math.min(code.length, end + (opens ? 2 : 1));
    };
    while (at < code.length) {
      let end = at + 1;
      let text = null;
      const skipped = take(skip, at);
      const found = skipped ? null : take(word, at);
      if (skipped) {
        end = at + skipped[0].length;
        if (skipped[0][0] !== '/') before = "'";
      } else if (found) {
        end = at + found[0].length;
        const statement = found[0] === 'import' && before !== '.' ? staticImport(code, at, braces.length) : null;
        if (statement) {
          end = at + statement.length;
          text = statement.text;
        } else if (found[0] === 'import' && before !== '.' && /^\s*\(/.test(code.slice(end, end + 64))) {
          text = '__import';
        }
        before = statement ? ';' : found[0];
      } else if (code[at] === '`') {
        end = template(at + 1);
      } else if (code[at] === '}' && braces.pop()) {
        end = template(at + 1);
      } else if (code[at] === '/' && isOperand(before) === false && take(regex, at)) {
        end = regex.lastIndex;
        before = "'";
      } else if (!/\s/.test(code[at])) {
        if (code[at] === '{') braces.push(false);
        before = code[at];
      }
      out += text ?? code.slice(at, end);
      at = end;
    }
    return out;
  }

  function isOperand(token) {
    if (/^(?:return|typeof|case|in|of|do|else|void|delete|throw|new|await|yield|instanceof)$/.test(token)) return false;
    return /^[\p{ID_Start}$_\d'`)\]}]/u.test(token);
  }

  /** An import statement at the top level, as a declaration that awaits the module. */
  function staticImport(code, at, depth) {
    if (depth > 0) return null;
    const statement =
      /import\s*(?:([\w$]+)\s*(?:,\s*)?)?(?:\*\s*as\s+([\w$]+)|\{([^}]*)\})?\s*(from\b)?\s*(['"])([^'"\n]+)\5(?:\s*(?:with|assert)\s*(\{[^}]*\}))?\s*?;?/y;
    statement.lastIndex = at;
    const found = statement.exec(code);
    if (!found) return null;
    const [whole, one, all, some, from, , specifier, attributes] = found;
    if (Boolean(one || all || some !== undefined) !== Boolean(from)) return null;
    const options = attributes ? `, {with: ${attributes}}` : '';
    const module = `await __import(${stringify(specifier)}${options})`;
    const names = (some ?? '').replace(/\sas\s/g, ': ');
    const picked = [one ? `default: ${one}` : '', names.trim()].filter(Boolean).join(', ');
    const parts = all ? [`${all} = ${module}`, one ? `{default: ${one}} = ${all}` : ''] : [`{${picked}} = ${module}`];
    const text = from ? `const ${parts.filter(Boolean).join(', ')};` : `${module};`;
    const lines = '\n'.repeat(whole.split('\n').length - text.split('\n').length);
    return { length: whole.length, text: text + lines };
  }

  // What the user's code finds

  function define(name, value) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true, enumerable: false });
  }

  function ownGlobals() {
    globalThis[Symbol.for('code context')] = (value) => {
      received = value;
    };
    define('display', display);
    define('_', undefined);
    define('__import', async (specifier, options) => {
      const namespace = await importFrom(specifier, options);
      imported.set(namespace, { specifier: String(specifier), folder });
      return namespace;
    });
    settleIn(process.cwd());
  }

  /** Modules are looked up from the working directory. */
  function settleIn(directory) {
    folder = directory;
    const filename = path.join(directory, 'cell.js');
    const module = new Module(filename);
    module.filename = filename;
    module.paths = Module._nodeModulePaths(directory);
    process.mainModule = module;
    define('module', module);
    define('exports', module.exports);
    define('require', Module.createRequire(filename));
    define('__filename', filename);
    define('__dirname', directory);
    importFrom = importer(filename);
  }

  function importer(filename) {
    const loader = vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER;
    if (loader !== undefined) {
      const options = { filename, importModuleDynamically: loader };
      return new vm.Script('(specifier, options) => import(specifier, options)', options).runInThisContext();
    }
    return async (specifier, options) => {
      const name = String(specifier);
      if (/^\.{0,2}\//.test(name)) return import(new URL(name, pathToFileURL(filename)).href, options);
      if (Module.isBuiltin(name) || /^[a-z]+:/.test(name)) return import(name, options);
      return import(pathToFileURL(Module.createRequire(filename).resolve(name)).href, options);
    };
  }

  function ownProcess() {
    process.argv = [process.execPath];
    process.exit = (code) => {
      throw new Exit(Number(code ?? process.exitCode ?? 0) & 0xff);
    };
    process.on('SIGINT', () => {}); // the message interrupts
    const stray = (error) => {
      if (!(error instanceof Exit)) {
        removeOwnFrames(error);
        process.stderr.write(`Uncaught ${textOf(error)}\n`);
      } else if (current !== null) {
        end(null, error.code);
      }
    };
    process.on('uncaughtException', stray);
    process.on('unhandledRejection', stray);
    for (const name of ['close', 'closeSync']) {
      const close = fs[name];
      fs[name] = function (descriptor, ...others) {
        // An accident that would end the context.
        return close.call(this, descriptor === CONTROL ? -CONTROL : descriptor, ...others);
      };
    }
  }

  /** Node ends the process when a termination unwinds a timer's frames, which it has numbered; the numbers matter less. */
  function surviveTerminations() {
    const { noDeprecation } = process;
    process.noDeprecation = true;
    try {
      const { async_hook_fields: fields, constants } = process.binding('async_wrap');
      fields[constants.kCheck] = 0;
    } catch {
      // then the interrupt of a busy timer ends the context
    } finally {
      process.noDeprecation = noDeprecation;
    }
  }

  /** Streams that write at once, so that all is out before the cell is done, and a console of theirs. */
  function ownStreams() {
    const pause = new Int32Array(new SharedArrayBuffer(4));
    const writeAll = (descriptor, bytes) => {
      for (let at = 0; at < bytes.length; ) {
        try {
          at += fs.writeSync(descriptor, bytes, at);
        } catch (error) {
          if (error.code !== 'EAGAIN') throw error;
          Atomics.wait(pause, 0, 0, 1);
        }
      }
    };
    const open = (descriptor) => {
      const { Writable } = require('node:stream');
      const stream = new Writable({
        decodeStrings: true,
        write(chunk, _, then) {
          try {
            writeAll(descriptor, chunk);
            then();
          } catch (error) {
            then(error);
          }
        },
      });
      stream.on('error', () => {}); // nobody reads any more
      stream.end = (chunk, encoding) => chunk !== undefined && stream.write(chunk, encoding);
      stream.destroy = stream.destroySoon = () => stream;
      return Object.assign(stream, { fd: descriptor, _type: 'pipe' });
    };
    const streams = {};
    for (const [name, descriptor] of [['stdout', 1], ['stderr', 2]]) {
      const get = () => (streams[name] ??= open(descriptor));
      Object.defineProperty(process, name, { get, configurable: true, enumerable: true });
    }
    const late = (name) => ({ write: (text) => process[name].write(text) });
    // Node's own console keeps what it was given for the inspector, and so never lets go of it.
    const own = new console.Console({ stdout: late('stdout'), stderr: late('stderr'), ignoreErrors: false });
    for (const name of Object.keys(own)) {
      if (typeof own[name] === 'function' && name !== 'Console') console[name] = own[name];
    }
  }
}
