//! The terminal: keys, signals, and leaving it as it was.

use std::{
    io::{self, Stdout, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use ratatui::{
    Terminal as Screen,
    backend::CrosstermBackend,
    crossterm::{
        cursor,
        event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
        execute,
        terminal::{self, EnterAlternateScreen, LeaveAlternateScreen},
    },
};

use super::{
    screen::{Look, draw},
    state::{Said, State},
};
use crate::{
    cli::{Exit, Failure, output::Terminal},
    daemon::admin::client::Client,
};

/// How long a key may wait.
const GLANCE: Duration = Duration::from_millis(100);
/// Between two looks: the least and the most.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// The terminal in our hands; given back when dropped, or when something panics.
struct Taken;

impl Taken {
    fn take() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let taken = Self;
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        Ok(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // Who is gone needs no terminal.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
    let _ = terminal::disable_raw_mode();
    let _ = io::stdout().flush();
}

/// Set when a signal asks us to end.
fn signals() -> Result<Arc<AtomicBool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let ended = Arc::new(AtomicBool::new(false));
    let told = ended.clone();
    let failed = |e: io::Error| Failure::new(Exit::System, "signals can't be received").because(&e);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        let one = |kind| signal(kind).map_err(failed);
        (
            one(SignalKind::interrupt())?,
            one(SignalKind::terminate())?,
            one(SignalKind::hangup())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
        });
        told.store(true, SeqCst);
    });
    Ok(ended)
}

/// Shows it until a key or a signal says that it is enough.
pub(super) fn watch(client: &Client, interval: Duration, out: &Terminal) -> Result<(), Failure> {
    // Who asks a daemon that is not there gets an answer on his own screen.
    let first = Said::ask(client)?;
    let ended = signals()?;
    let failed =
        |e: io::Error| Failure::new(Exit::System, "the terminal can't be used").because(&e);
    let taken = Taken::take().map_err(failed)?;
    let screen = Screen::new(CrosstermBackend::new(io::stdout())).map_err(failed)?;
    let mut view = View {
        interval: interval.clamp(INTERVALS.0, INTERVALS.1),
        look: Look {
            color: out.color,
            unicode: out.unicode,
            ..Look::default()
        },
        state: State::of(None, first),
        screen,
    };
    let outcome = view.run(client, &ended);
    drop(taken);
    outcome.map_err(failed)
}

struct View {
    interval: Duration,
    look: Look,
    state: State,
    screen: Screen<CrosstermBackend<Stdout>>,
}

impl View {
    fn run(&mut self, client: &Client, ended: &AtomicBool) -> io::Result<()> {
        let mut looked = Instant::now();
        while !ended.load(SeqCst) {
            self.look.interval = self.interval.as_secs_f64();
            self.screen
                .draw(|frame| draw(frame, &self.state, &self.look))?;
            if event::poll(GLANCE)? {
                match event::read()? {
                    Event::Key(key) if key.kind != KeyEventKind::Release => match self.key(key) {
                        Next::End => return Ok(()),
                        Next::Look => looked = Instant::now() - self.interval,
                        Next::GoOn => {}
                    },
                    _ => {}
                }
            }
            if !self.look.paused && looked.elapsed() >= self.interval {
                looked = Instant::now();
                match Said::ask(client) {
                    Ok(said) => {
                        self.state = State::of(Some(&self.state.said), said);
                        self.look.stale = false;
                    }
                    // The next one may take its place: asked on and on.
                    Err(_) => self.look.stale = true,
                }
            }
        }
        Ok(())
    }

    fn key(&mut self, key: KeyEvent) -> Next {
        let look = &mut self.look;
        match key.code {
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Next::End;
            }
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Char('p' | ' ') => look.paused = !look.paused,
            KeyCode::Char('+') => self.interval = (self.interval / 2).max(INTERVALS.0),
            KeyCode::Char('-') => self.interval = (self.interval * 2).min(INTERVALS.1),
            KeyCode::Tab => (look.focus, look.scroll) = (look.focus.next(), 0),
            KeyCode::Down | KeyCode::Char('j') => look.scroll = (look.scroll + 1).min(1000),
            KeyCode::Up | KeyCode::Char('k') => look.scroll = look.scroll.saturating_sub(1),
            KeyCode::Char('r') => return Next::Look,
            _ => {}
        }
        Next::GoOn
    }
}

enum Next {
    GoOn,
    Look,
    End,
}
