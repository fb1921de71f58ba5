'use strict'
// The page of the demo: inputs of the chosen run, its answer, and the attention of each word to the inputs.

const RATE = 16000
const READ_BY_SERVER = /\.(wav|flac|ogg|opus|mp3)$/i
const $ = id => document.getElementById(id)
const state = { runs: [], limits: {}, run: null, values: {}, urls: [] }

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties)
  node.append(...children)
  return node
}

function showState(text) { $('state').textContent = text }

function showError(text) {
  $('error').textContent = text
  $('error').hidden = !text
}

// Choosing a run

function choose(index) {
  state.run = state.runs[index]
  state.values = {}
  state.urls.splice(0).forEach(URL.revokeObjectURL)
  const called = state.run.inputs.map(input => input.called)
  $('about').textContent = `${state.run.task} of ${called.join(' and ')}`
  $('ask').textContent = state.run.verb
  $('ask').disabled = false
  $('inputs').replaceChildren(...state.run.inputs.map(input => (input.kind === 'text' ? textInput : fileInput)(input)))
  $('result').hidden = true
  showError('')
  showState('')
}

function textInput(input) {
  const area = make('textarea', { id: `in-${input.modality}`, maxLength: state.limits.characters, spellcheck: false, dir: 'auto' })
  area.addEventListener('input', () => { state.values[input.modality] = area.value })
  area.addEventListener('keydown', event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('form').requestSubmit()
  })
  const label = make('label', { htmlFor: area.id }, 'Text')
  return make('div', { className: 'input' }, label, area, make('p', { className: 'hint' }, 'Ctrl+Enter sends the text.'))
}

const LABELS = { picture: 'Picture', sound: 'Sound', features: 'Features' }

function fileInput(input) {
  const box = make('div', { className: 'input' })
  const file = make('input', { type: 'file', id: `in-${input.modality}`, accept: input.accept })
  const shown = make('div')
  const take = one => { if (one) keep(input, one, shown) }
  file.addEventListener('change', () => take(file.files[0]))
  box.addEventListener('dragover', event => { event.preventDefault(); box.classList.add('over') })
  box.addEventListener('dragleave', () => box.classList.remove('over'))
  box.addEventListener('drop', event => {
    event.preventDefault()
    box.classList.remove('over')
    take(event.dataTransfer.files[0])
  })
  const row = make('div', { className: 'row' }, file)
  if (input.kind === 'sound') row.append(recorder(take))
  const hints = {
    picture: `Drop it here, paste it, or choose a file (${state.limits.bytes / 2 ** 20} MiB at most).`,
    sound: `Drop it here, choose a file, or record (${state.limits.seconds} s at most).`,
    features: 'An array in the format of NumPy (.npy), one row for each frame.',
  }
  const name = LABELS[input.kind] + (input.kind === 'features' ? ` of ${input.modality}` : '')
  box.append(make('label', { htmlFor: file.id }, name), row, make('p', { className: 'hint' }, hints[input.kind]), shown)
  box.take = input.kind === 'picture' ? take : null
  return box
}

document.addEventListener('paste', event => {
  const picture = [...event.clipboardData.files].find(file => file.type.startsWith('image/'))
  const box = [...$('inputs').children].find(child => child.take)
  if (picture && box) box.take(picture)
})
// A file dropped beside its place must not replace the page.
for (const kind of ['dragover', 'drop']) window.addEventListener(kind, event => event.preventDefault())

async function keep(input, file, shown) {
  showError('')
  shown.replaceChildren()
  delete state.values[input.modality]
  if (file.size > state.limits.bytes) {
    return showError(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MiB: ${state.limits.bytes / 2 ** 20} MiB at most.`)
  }
  const run = state.run
  if (input.kind === 'sound' && !READ_BY_SERVER.test(file.name)) file = await converted(file)
  if (!file || run !== state.run) return
  state.values[input.modality] = file
  if (input.kind === 'features') return shown.append(make('p', { className: 'note' }, file.name))
  const source = URL.createObjectURL(file)
  state.urls.push(source)
  const player = { src: source, controls: true, onerror: () => shown.replaceChildren(make('p', { className: 'note' }, file.name)) }
  const picture = { src: source, alt: file.name, onerror: player.onerror }
  shown.append(input.kind === 'picture' ? make('img', picture) : make('audio', player))
}

// Sounds: formats that the server does not read, and recordings, become a WAV of one channel here

async function converted(file) {
  const context = new AudioContext({ sampleRate: RATE })
  try {
    const sound = await context.decodeAudioData(await file.arrayBuffer())
    const mean = new Float32Array(sound.length)
    for (let c = 0; c < sound.numberOfChannels; c++) sound.getChannelData(c).forEach((x, i) => { mean[i] += x / sound.numberOfChannels })
    return new File([wav(mean)], file.name.replace(/\.\w+$/, '') + '.wav', { type: 'audio/wav' })
  } catch {
    showError(`${file.name} is not a sound that can be read: use WAV, FLAC, Ogg, Opus or MP3.`)
  } finally {
    context.close()
  }
}

function wav(samples) {
  const data = new DataView(new ArrayBuffer(44 + 2 * samples.length))
  const text = (at, letters) => [...letters].forEach((letter, i) => data.setUint8(at + i, letter.charCodeAt(0)))
  text(0, 'RIFF'); data.setUint32(4, 36 + 2 * samples.length, true); text(8, 'WAVEfmt ')
  data.setUint32(16, 16, true); data.setUint16(20, 1, true); data.setUint16(22, 1, true)
  data.setUint32(24, RATE, true); data.setUint32(28, 2 * RATE, true); data.setUint16(32, 2, true); data.setUint16(34, 16, true)
  text(36, 'data'); data.setUint32(40, 2 * samples.length, true)
  samples.forEach((x, i) => data.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true))
  return data
}

function recorder(take) {
  const button = make('button', { type: 'button', className: 'record' }, 'Record')
  if (!navigator.mediaDevices) {
    Object.assign(button, { disabled: true, title: 'Browsers allow the microphone only on this machine or over https.' })
    return button
  }
  let recording = null
  const start = async () => {
    let stream
    button.disabled = true // until access is granted
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true })
    } catch (error) {
      return showError(`The microphone cannot be used: ${error.message}.`)
    } finally {
      button.disabled = false
    }
    const parts = [], began = Date.now()
    recording = new MediaRecorder(stream)
    recording.ondataavailable = event => parts.push(event.data)
    const tick = setInterval(() => {
      const seconds = Math.floor((Date.now() - began) / 1000)
      button.textContent = `Stop (${seconds} s)`
      if (seconds >= state.limits.seconds - 1) stop()
    }, 250)
    recording.onstop = () => {
      clearInterval(tick)
      stream.getTracks().forEach(track => track.stop())
      recording = null
      button.textContent = 'Record'
      button.classList.remove('recording')
      take(new File(parts, 'recorded.webm'))
    }
    recording.start()
    button.textContent = 'Stop (0 s)'
    button.classList.add('recording')
  }
  const stop = () => { if (recording && recording.state === 'recording') recording.stop() }
  button.addEventListener('click', () => (recording ? stop() : start()))
  return button
}

// Requests

$('form').addEventListener('submit', async event => {
  event.preventDefault()
  showError('')
  const form = new FormData()
  form.append('run', state.run.name)
  for (const { modality, kind } of state.run.inputs) {
    if (state.values[modality] !== undefined || kind === 'text') form.append(modality, state.values[modality] ?? '')
  }
  const requested = state.run
  $('ask').disabled = true
  showState('Computing …')
  try {
    const response = await fetch('answer', { method: 'POST', body: form })
    const result = await response.json()
    if (state.run !== requested) return
    if (response.ok) show(result)
    else { $('result').hidden = true; showError(result.error) }
    showState(response.ok ? `${result.took} s` : '')
  } catch (error) {
    showError(`No answer: is the demo still running? (${error.message})`)
    showState('')
  } finally {
    $('ask').disabled = false
  }
})

// Answers

const heat = share => `rgba(${getComputedStyle(document.documentElement).getPropertyValue('--heat')}, ${Math.min(1, share).toFixed(3)})`
const percent = value => `${(100 * value).toFixed(1)} %`

function show(result) {
  const parts = [make('p', { className: 'answer', dir: 'auto' }, result.text || '(nothing)')]
  if (result.language) parts.push(make('p', { className: 'note' }, `language: ${result.language}`))
  if (result.transcript) parts.push(make('h2', {}, 'Transcript'), make('p', { dir: 'auto' }, result.transcript))
  if (result.others?.length) {
    parts.push(make('h2', {}, 'Other answers'), make('ol', { className: 'others', start: 2 }, ...result.others.map(([text]) => make('li', { dir: 'auto' }, text))))
  }
  if (result.probabilities) parts.push(...Object.entries(result.probabilities).sort((a, b) => b[1] - a[1]).map(([name, p]) => bar(name, p, percent(p))))
  if (result.range) {
    const [low, high] = result.range
    parts.push(bar(`${low} to ${high}`, (result.value - low) / (high - low), result.value.toFixed(2)))
  }
  const views = result.attention?.map(entry => VIEWS[entry.modality === 'image' ? 'image' : entry.labels.length ? 'text' : 'audio'](entry, result)) ?? []
  if (views.length) {
    parts.push(...attention(result.attention[0].words, views))
    const withoutAttention = state.run.inputs.filter(input => !result.attention.some(entry => entry.modality === input.modality))
    if (withoutAttention.length) parts.push(make('p', { className: 'note' }, `No attention to ${withoutAttention.map(input => input.called).join(' and ')}: the fusion reduces it to vectors without positions.`))
  }
  if (result.picture && !result.attention?.some(entry => entry.modality === 'image')) parts.push(make('h2', {}, 'Picture as the model reads it'), overlay(result.picture).box)
  if (result.sound && !views.some(view => view.showsSound)) parts.push(make('h2', {}, 'Spectrogram of the sound'), spectrogram(result.sound).box)
  if (result.times?.length) parts.push(make('h2', {}, 'Timeline'), timeline(result.times))
  $('result').replaceChildren(...parts)
  $('result').hidden = false
}

function bar(name, share, number) {
  const fill = make('i')
  fill.style.width = `${100 * Math.max(0, Math.min(1, share))}%`
  return make('div', { className: 'bar' }, make('span', {}, name), make('span', { className: 'track' }, fill), make('span', { className: 'number' }, number))
}

// A button for each word: the one that is pressed, pointed at or focused shows its attention.
function attention(words, views) {
  const buttons = words.map(word => make('button', { type: 'button', dir: 'auto' }, word))
  const pick = number => {
    buttons.forEach((button, i) => button.setAttribute('aria-pressed', i === number))
    views.forEach(view => view.pick(number))
  }
  buttons.forEach((button, i) => {
    for (const kind of ['click', 'focus', 'pointerenter']) button.addEventListener(kind, () => pick(i))
    button.addEventListener('keydown', event => {
      const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: words.length - 1 }[event.key]
      if (buttons[next]) { event.preventDefault(); buttons[next].focus() }
    })
  })
  pick(0)
  const list = make('div', { className: 'words', role: 'group', ariaLabel: 'Words of the answer' }, ...buttons)
  return [make('h2', {}, 'Attention'), make('p', { className: 'note' }, 'Choose a word: the marks show what the decoder attended to while it wrote the word.'), list, ...views.map(view => view.box)]
}

function paint(canvas, weights, rows, columns, top) {
  Object.assign(canvas, { width: columns, height: rows })
  const context = canvas.getContext('2d')
  weights.forEach((weight, i) => {
    context.fillStyle = heat(0.8 * weight / top)
    context.fillRect(i % columns, Math.floor(i / columns), 1, 1)
  })
}

function overlay(picture) {
  const canvas = make('canvas')
  const box = make('div', { className: 'overlay' }, make('img', { src: picture.source, alt: 'The picture as the model reads it', className: picture.small ? 'small' : '' }), canvas)
  box.style.aspectRatio = `${picture.width} / ${picture.height}`
  box.style.width = `${Math.min(420, 300 * picture.width / picture.height)}px`
  return { box, canvas }
}

const most = rows => Math.max(1e-6, ...rows.flat())

const VIEWS = {
  text(entry) {
    const spans = entry.labels.map(label => make('span', {}, label))
    const top = most(entry.weights)
    const cells = (row, i) => row.map((weight, j) => {
      const cell = make('td', { title: `${entry.words[i]} – ${entry.labels[j]}: ${percent(weight)}` })
      cell.style.background = heat(weight / top)
      return cell
    })
    const head = make('tr', {}, make('td'), ...entry.labels.map(label => make('th', { scope: 'col' }, label)))
    const body = entry.weights.map((row, i) => make('tr', {}, make('th', { scope: 'row' }, entry.words[i]), ...cells(row, i)))
    const table = make('table', {}, make('thead', {}, head), make('tbody', {}, ...body))
    const all = make('details', {}, make('summary', {}, 'All words'), make('div', { className: 'scroll', tabIndex: 0 }, table))
    return {
      box: make('div', {}, make('p', { className: 'source', dir: 'auto' }, ...spans.flatMap(span => [span, ' '])), all),
      pick: number => spans.forEach((span, j) => {
        span.style.background = heat(entry.weights[number][j] / Math.max(...entry.weights[number], 1e-6))
        span.title = percent(entry.weights[number][j])
      }),
    }
  },

  image(entry, result) {
    const [rows, columns] = entry.grid, large = overlay(result.picture)
    const draw = (canvas, i) => paint(canvas, entry.weights[i], rows, columns, most([entry.weights[i]]))
    const film = entry.words.map((word, i) => {
      const { box, canvas } = overlay(result.picture)
      box.style.width = ''
      draw(canvas, i)
      return make('figure', {}, box, make('figcaption', { dir: 'auto' }, word))
    })
    const all = make('details', {}, make('summary', {}, 'All words'), make('div', { className: 'film' }, ...film))
    return { box: make('div', {}, large.box, all), pick: number => draw(large.canvas, number) }
  },

  audio(entry, result) {
    const top = most(entry.weights), sound = result.sound ? spectrogram(result.sound) : { box: make('div'), canvas: make('canvas') }
    const strips = entry.words.flatMap((word, i) => {
      const canvas = make('canvas', { className: 'pixels' })
      paint(canvas, entry.weights[i], 1, entry.weights[i].length, 0.8 * top)
      return [make('span', { dir: 'auto' }, word), canvas]
    })
    const times = make('div', { className: 'times' }, ...[0, 0.5, 1].map(part => make('span', {}, `${(part * entry.seconds).toFixed(1)} s`)))
    const all = make('details', { open: true }, make('summary', {}, 'All words'), make('div', { className: 'strips' }, ...strips))
    return {
      showsSound: true, box: make('div', {}, sound.box, times, all),
      pick: number => paint(sound.canvas, entry.weights[number], 1, entry.weights[number].length, Math.max(...entry.weights[number], 1e-6)),
    }
  },
}

function spectrogram(source) {
  const canvas = make('canvas', { className: 'pixels' })
  return { canvas, box: make('div', { className: 'sound' }, make('img', { src: source, alt: 'Spectrogram of the sound' }), canvas) }
}

function timeline(times) {
  const player = $('inputs').querySelector('audio')
  return make('ul', { className: 'timeline' }, ...times.map(([text, start, end]) => {
    const play = make('button', { type: 'button', title: 'Play from here' }, `${start.toFixed(2)} – ${end.toFixed(2)} s`)
    play.disabled = !player
    play.addEventListener('click', () => { player.currentTime = start; player.play() })
    return make('li', {}, play, make('span', { dir: 'auto' }, text))
  }))
}

// Start

async function begin() {
  Object.assign(state, await (await fetch('runs')).json())
  $('run').replaceChildren(...state.runs.map((run, i) => make('option', { value: i }, `${run.name} (${run.task})`)))
  $('run').addEventListener('change', () => choose($('run').value))
  $('run').disabled = state.runs.length < 2
  choose(0)
}
begin().catch(error => showError(`The page could not be loaded: ${error.message}`))
