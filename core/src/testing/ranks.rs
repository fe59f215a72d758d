//! Runs tests on several ranks, which are threads and connect over the loopback interface.

use std::net::TcpListener;
use std::sync::Arc;

use crate::ffi::{Store, has_gloo};
use crate::world::{self, Launch, World};

/// Runs `work` on each of `size` ranks, and returns the results in the order of the ranks. Returns
/// `None` if this program was built without gloo.
pub fn on_ranks<T: Send>(size: usize, work: impl Fn(Arc<World>) -> T + Sync) -> Option<Vec<T>> {
    if has_gloo().is_err() {
        println!("skipped: built without gloo");
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let launch = |rank| launch(rank, size, port);
    Some(start(size, launch, work))
}

/// Like [`on_ranks`], but the launcher hosts the store, and restarts the ranks, so that they are
/// started `starts` times.
pub fn hosted<T: Send>(
    size: usize,
    starts: usize,
    work: impl Fn(Arc<World>) -> T + Sync,
) -> Option<Vec<Vec<T>>> {
    if has_gloo().is_err() {
        println!("skipped: built without gloo");
        return None;
    }
    let (_store, port) = Store::open("127.0.0.1", 0, true, "agent/", Launch::patience()).unwrap();
    let run = |start_number: usize| {
        let launch = |rank| Launch {
            hosted: true,
            prefix: format!("test/{start_number}/"),
            ..launch(rank, size, port)
        };
        start(size, launch, &work)
    };
    Some((0..starts).map(run).collect())
}

fn launch(rank: usize, size: usize, port: u16) -> Launch {
    Launch {
        launcher: "the test",
        rank,
        size,
        local_rank: rank,
        host: "127.0.0.1".to_owned(),
        port,
        hosted: false,
        prefix: "test/".to_owned(),
    }
}

fn start<T: Send>(
    size: usize,
    launch: impl Fn(usize) -> Launch + Sync,
    work: impl Fn(Arc<World>) -> T + Sync,
) -> Vec<T> {
    let rank = |rank| {
        let lost = Arc::new(|e| panic!("a rank was lost: {e}"));
        let world = world::enter(World::join(&launch(rank), lost).unwrap());
        let result = work(Arc::clone(&world));
        world.leave(None);
        result
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|number| {
                let rank = &rank;
                scope.spawn(move || rank(number))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
